"""`lit_compress check`: what will go wrong in a training or an export, before either has begun.

A configuration is checked by the fit itself: all that it does before its first step is done, in a temporary folder.
"""

import shlex
import sys
from collections.abc import Sequence

from lit_compress.errors import UserError
from lit_compress.usage_errors import is_configured

__all__ = ["check"]


def check(sources: list[str], overrides: Sequence[str] = ()) -> None:
    """Check a model folder or a `fit` configuration; every finding names what to change.

    Args:
        sources: a model folder, `package:` or hub name; or YAML files as for `fit --config`.
        overrides: options of `fit`, including `--config`.

    Raises:
        UserError: an error was found; what was found is printed.

    """
    files = [source for source in sources if source.startswith("@") or source.endswith((".yaml", ".yml"))]
    configured = bool(files) or is_configured(overrides)
    if configured and len(files) < len(sources):
        raise UserError(f"check: {sources} are configurations and models; give YAML files of one fit, or one model")
    if not configured and (len(sources) != 1 or overrides):
        given = " ".join([*sources, *overrides]) or "nothing"
        raise UserError(f"check: {given} was given; give one model alone, or YAML files and then options of fit")
    if configured:
        from lit_compress.dry_fit import fit_findings

        found = fit_findings(files, overrides)
    else:
        from lit_compress.report.model_check import model_findings

        found = list(model_findings(sources[0], "model.pretrained"))
    for finding in found:
        sys.stdout.write(f"{finding}\n")
    counts = {level: sum(finding.level == level for finding in found) for level in ("error", "warning")}
    said = ", ".join(f"{count} {level}{'s' * (count > 1)}" for level, count in counts.items() if count)
    if counts["error"]:
        raise UserError(f"check: {said}; each of the lines names what to change")
    command = ["lit_compress", "fit", *(word for file in files for word in ("--config", file)), *overrides]
    next_step = f"Next: {shlex.join(command)}" if configured else "The model can be trained: lit_compress init FILE"
    sys.stdout.write(f"{said or 'Nothing to change'}. {next_step}\n")

"""A data module of somebody's own, as docs/extending.md asks for one."""

from lightning.pytorch import LightningDataModule

from lit_compress.data import TextClassification


class OwnRows(LightningDataModule):
    """Texts of up to 12 tokens, whatever the settings of others are called."""

    task = "classification"

    def __init__(self, folder: str, tokenizer_name: str, labels: list[str]):
        super().__init__()
        self.labels, self.tokenizer_name = labels, tokenizer_name
        files = {"train_file": f"{folder}/train.tsv", "val_file": f"{folder}/val.tsv"}
        self.texts = TextClassification(**files, tokenizer=tokenizer_name, text_columns=["sentence"], max_length=12)

    def setup(self, stage):
        self.texts.setup(stage)

    def train_dataloader(self):
        return self.texts.train_dataloader()

    def val_dataloader(self):
        return self.texts.val_dataloader()


def use_own_rows(config, data, teacher):
    """Let the configuration of a run name such a data module."""
    options = {"folder": str(data), "tokenizer_name": str(teacher), "labels": ["0", "1"]}
    config["data"] = {"class_path": "contracts.own_data.OwnRows", "init_args": options}

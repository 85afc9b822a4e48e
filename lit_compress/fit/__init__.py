"""What `fit` keeps to about its run folder: who writes into it, checkpoints, signals, going on."""

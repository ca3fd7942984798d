"""What is trained and measured: configs, runs, training, testing, statistics and the report."""

"""Sound model: training and evaluation."""

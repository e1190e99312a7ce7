"""Online RL: TRL's GRPOTrainer with our data, our model, our rewards and our run folder. Start reading at `fit.py`."""

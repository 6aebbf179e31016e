"""Walks through a loss landscape, as ``torch.optim.Optimizer``. Add a file to add walkers."""

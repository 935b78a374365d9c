"""The linear maps of anyone's network: what enters them while it runs, and how their weights are replaced."""

"""One trainer: the loop, the objectives, the optimiser, and the state that makes a resumed run the same run."""

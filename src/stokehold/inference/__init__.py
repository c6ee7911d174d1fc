"""Answers from weights: batched generation with token log-probabilities, the OpenAI server, the model registry."""

"""moelens: bulk text generation from Mixture-of-Experts models."""

"""Optimisers: of gates, and of the weights of models that look rows up."""

from lpfs.optim.proximal import ProximalSGD
from lpfs.optim.rows import SGD, Adagrad, Adam, RowWiseAdagrad

__all__ = ["SGD", "Adagrad", "Adam", "ProximalSGD", "RowWiseAdagrad"]

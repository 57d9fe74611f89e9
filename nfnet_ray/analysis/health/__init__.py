"""Computes the health cards of a study: properties of its design or results that deserve a second look."""

from nfnet_ray.analysis.health.cards import HealthCard, health_cards, health_lines

__all__ = ["HealthCard", "health_cards", "health_lines"]

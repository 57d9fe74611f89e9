"""Health cards of a study: what in its design or its results asks for another look, and the next step."""

from nfnet_ray.analysis.health.cards import HealthCard, health_cards, health_lines

__all__ = ["HealthCard", "health_cards", "health_lines"]

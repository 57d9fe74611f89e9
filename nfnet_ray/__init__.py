"""nfnet_ray: a platform for studying normaliser-free image networks at scale.

The public names. Each is imported when it is first asked for, so that ``import nfnet_ray`` takes no time, and
``nfnet_ray.create_model`` needs torch alone. Within the project nothing imports from here: this module is above all
others, and whoever needs a name imports it from the module that defines it.
"""

from __future__ import annotations

import sys
from importlib import import_module

from nfnet_ray.version import __version__

TYPE_CHECKING = False  # as typing has it, whose import would be most of this one's time
if TYPE_CHECKING:
    from dashboards.study_results import StudyResults, load_study
    from nfnet_ray.analysis.answer import best_per_stratum, best_setting
    from nfnet_ray.analysis.record import StudyRecord
    from nfnet_ray.errors import UserError
    from nfnet_ray.models import create_model, list_models
    from nfnet_ray.models.published import published_recipe
    from nfnet_ray.recipe import Recipe
    from nfnet_ray.study.halving import Halving
    from nfnet_ray.study.space import Range, SameAs, When
    from nfnet_ray.study.study import Study
    from studies.running.from_python import run
    from studies.running.planning.study_plan import StudyPlan

__all__ = [
    "Halving",
    "Range",
    "Recipe",
    "SameAs",
    "Study",
    "StudyPlan",
    "StudyRecord",
    "StudyResults",
    "UserError",
    "When",
    "__version__",
    "best_per_stratum",
    "best_setting",
    "create_model",
    "list_models",
    "load_study",
    "published_recipe",
    "run",
]

_DEFINED_IN = {
    "Halving": "nfnet_ray.study.halving",
    "Range": "nfnet_ray.study.space",
    "Recipe": "nfnet_ray.recipe",
    "SameAs": "nfnet_ray.study.space",
    "Study": "nfnet_ray.study.study",
    "StudyPlan": "studies.running.planning.study_plan",
    "StudyRecord": "nfnet_ray.analysis.record",
    "StudyResults": "dashboards.study_results",
    "UserError": "nfnet_ray.errors",
    "When": "nfnet_ray.study.space",
    "best_per_stratum": "nfnet_ray.analysis.answer",
    "best_setting": "nfnet_ray.analysis.answer",
    "create_model": "nfnet_ray.models",
    "list_models": "nfnet_ray.models",
    "load_study": "dashboards.study_results",
    "published_recipe": "nfnet_ray.models.published",
    "run": "studies.running.from_python",
}

# True while `python -m nfnet_ray.models` looks for that program, which imports this and other packages.
if getattr(sys, "argv", [])[:1] == ["-m"]:
    from nfnet_ray.command_line.program import begin

    begin()

if not TYPE_CHECKING:  # so that a type checker reports a name that does not exist

    def __getattr__(name: str) -> object:
        if name not in _DEFINED_IN:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_DEFINED_IN[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

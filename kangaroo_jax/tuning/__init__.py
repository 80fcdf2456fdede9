"""What pays: gamma, eta and adapter, from one traced run of each prompt and measured costs."""

from kangaroo_jax.tuning.costs import Costs, CostTimers, measure_costs
from kangaroo_jax.tuning.outcome import Setting, Tuning
from kangaroo_jax.tuning.search import steps, tune

__all__ = ["CostTimers", "Costs", "Setting", "Tuning", "measure_costs", "steps", "tune"]

"""The kernels without the public functions' checks and without autograd, for loops that checked their operands once.

Arguments are those of the ops' schemas, in order. The backend is still selected per call.
"""

from .. import ops  # noqa: F401  (registers them)
from ..ops._register import OPS

elbo_reduce = OPS["elbo_reduce"].run
likelihood_score = OPS["likelihood_score"].run
philox_normal = OPS["philox_normal"].run
pilot_posterior_step = OPS["pilot_posterior_step"].run
pvd_calibrate = OPS["pvd_calibrate"].run
pvd_channel_step = OPS["pvd_channel_step"].run
pvd_update = OPS["pvd_update"].run
renoise = OPS["renoise"].run
waterfill_inject = OPS["waterfill_inject"].run
waterfill_step = OPS["waterfill_step"].run
waterfill_step_authors = OPS["waterfill_step_authors"].run

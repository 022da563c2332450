"""What is believed of prompts: a Gaussian process over their parts, and what its posterior says to measure next."""

import warnings

# gpytorch compiles functions when it is imported, in a way that PyTorch 2.14 and later call deprecated
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
# "botorch" computes what the user asked for; what BoTorch would rather compute is not news to them
warnings.filterwarnings("ignore", "qExpectedImprovement has known numerical issues")

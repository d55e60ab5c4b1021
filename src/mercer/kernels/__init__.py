from mercer.kernels.gaussian import Gaussian
from mercer.kernels.matern import Matern

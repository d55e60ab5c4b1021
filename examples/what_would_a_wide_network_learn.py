"""What would a wide network learn? Its tangent kernel predicts the outcome of training before any training."""

import torch

from mercer.kernels import EmpiricalNTK
from mercer.linalg import Cholesky
from mercer.operators import Shifted

g = torch.Generator().manual_seed(0)
torch.manual_seed(0)  # torch's layers draw their weights from the global generator
x = 2 * torch.rand(30, 1, generator=g, dtype=torch.float64) - 1
new = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
y, ridge = torch.sin(3 * x), 0.3


def gap(width):
    """How far the trained network is from the kernel's forecast, relative to what training changed."""
    net = torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.Tanh(), torch.nn.Linear(width, 1)).double()
    start, before = net(x).detach(), net(new).detach()
    k, solver = EmpiricalNTK(net), Cholesky()  # a frozen copy: training below does not change it
    foreseen = before + k(new, x) @ solver.solve(solver.prepare(Shifted(k(x), ridge)), y - start).value

    first = [p.detach().clone() for p in net.parameters()]
    optimiser = torch.optim.LBFGS(net.parameters(), max_iter=150, history_size=30, line_search_fn="strong_wolfe")

    def loss():
        """Squared error and a pull towards the first weights: ridge regression in the limit of infinite width."""
        optimiser.zero_grad()
        pull = sum((p - q).square().sum() for p, q in zip(net.parameters(), first, strict=True))
        value = (net(x) - y).square().sum() + ridge * pull
        value.backward()
        return value

    optimiser.step(loss)
    return ((net(new).detach() - foreseen).norm() / (foreseen - before).norm()).item()


gaps = {width: gap(width) for width in (4, 64, 1024)}
for width, value in gaps.items():
    print(f"width {width:>4}: the trained network is {100 * value:.2f} % away from the forecast")

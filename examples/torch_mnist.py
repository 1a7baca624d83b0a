"""Train a convolutional network on handwritten digits, as PyTorch's own MNIST example does, with multiopt's Adadelta.

One line differs from a program that uses PyTorch's optimizer: the import. ``--optimizer torch`` runs PyTorch's. In
float64 (``--double``) the losses are the same to all digits shown, from the first batch to the last; in float32 they
diverge after some batches, because training at this rate amplifies differences in the last bit. The images are
scikit-learn's 1,797 digits, enlarged to 28 x 28: nothing is downloaded. Run it with
``python examples/torch_mnist.py`` (``pip install "multiopt[torch,numba]" scikit-learn``).
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

import multiopt.torch


class Net(nn.Module):
    """Two convolutions and two linear layers, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3)
        self.conv2 = nn.Conv2d(16, 32, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(4608, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithms of the digits' probabilities."""
        x = functional.relu(self.conv1(x))
        x = functional.relu(self.conv2(x))
        x = self.dropout1(functional.max_pool2d(x, 2)).flatten(1)
        x = self.dropout2(functional.relu(self.fc1(x)))
        return functional.log_softmax(self.fc2(x), dim=1)


def digits(count: int) -> tuple[TensorDataset, TensorDataset]:
    """`count` images for training, at most 1,500, and 297 for the test."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.get_default_dtype()).unsqueeze(1) / 16
    images = functional.interpolate(images, size=(28, 28), mode="bilinear")
    labels = torch.tensor(data.target)
    return TensorDataset(images[:1500][:count], labels[:1500][:count]), TensorDataset(images[1500:], labels[1500:])


def train(
    log_interval: int, model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, epoch: int
) -> float:
    """One epoch; returns the seconds spent in the optimizer."""
    model.train()
    spent = 0.0
    for index, (data, target) in enumerate(loader):
        optimizer.zero_grad()
        loss = functional.nll_loss(model(data), target)
        loss.backward()
        start = time.perf_counter()
        optimizer.step()
        spent += time.perf_counter() - start
        if index % log_interval == 0:
            print(f"Train Epoch: {epoch} [{index}/{len(loader)}]\tLoss: {loss.item():.6f}")
    return spent


def test(model: nn.Module, loader: DataLoader) -> None:
    model.eval()
    loss, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for data, target in loader:
            output = model(data)
            loss += functional.nll_loss(output, target, reduction="sum").item()
            correct += int((output.argmax(dim=1) == target).sum())
            count += len(target)
    print(f"Test set: Average loss: {loss / count:.4f}, Accuracy: {correct}/{count} ({100 * correct / count:.0f}%)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=64, help="size of a training batch (default: 64)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs to train (default: 3)")
    parser.add_argument("--lr", type=float, default=1.0, help="learning rate (default: 1.0)")
    parser.add_argument("--gamma", type=float, default=0.7, help="decay of the rate after each epoch (default: 0.7)")
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: 1)")
    parser.add_argument("--log-interval", type=int, default=10, help="batches between lines of output (default: 10)")
    parser.add_argument("--optimizer", choices=["multiopt", "torch"], default="multiopt", help="whose Adadelta")
    parser.add_argument("--images", type=int, default=1500, help="images to train with (default: 1500)")
    parser.add_argument(
        "--state", choices=["parameter's", "nearest", "stochastic"], default="parameter's",
        help="multiopt's accumulators: of the parameter's dtype, or in bfloat16, rounded so",
    )  # fmt: skip
    parser.add_argument("--double", action="store_true", help="train in float64")
    args = parser.parse_args()

    torch.set_default_dtype(torch.float64 if args.double else torch.float32)
    torch.manual_seed(args.seed)
    training, testing = digits(args.images)
    train_loader = DataLoader(training, batch_size=args.batch_size, shuffle=True)
    test_loader = DataLoader(testing, batch_size=297)

    model = Net()
    optim = multiopt.torch if args.optimizer == "multiopt" else torch.optim
    state = {} if args.state == "parameter's" else {"state_dtype": torch.bfloat16, "state_rounding": args.state}
    optimizer = optim.Adadelta(model.parameters(), lr=args.lr, **state)
    scheduler = StepLR(optimizer, step_size=1, gamma=args.gamma)
    spent = 0.0
    for epoch in range(1, args.epochs + 1):
        spent += train(args.log_interval, model, train_loader, optimizer, epoch)
        test(model, test_loader)
        scheduler.step()
    print(f"In the optimizer: {spent:.2f} s")


if __name__ == "__main__":
    main()

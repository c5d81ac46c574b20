"""PyTorch as in the notebook: each image by itself through a transform, a loader of batches of 64.

`Mnist.__getitem__` does what torchvision's does, with its ToTensor and Normalize((0.5,), (0.5,)).
"""

import time

import numpy as np
import torch
from _job import BATCH, EPOCHS, RATE, load, report
from _torch import DEVICE, network
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Mnist(Dataset):
    """Images that are transformed when they are asked for."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images.reshape(-1, 28, 28), labels

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        """An image in [-1, 1], f32 [1, 28, 28], and its label."""
        picture = Image.fromarray(self.images[i])
        pixels = torch.from_numpy(np.array(picture, np.uint8)).view(28, 28, 1).permute(2, 0, 1)
        tensor = pixels.contiguous().to(torch.float32).div(255)
        mean, std = (torch.as_tensor((0.5,)).view(-1, 1, 1) for _ in range(2))
        return tensor.clone().sub_(mean).div_(std), int(self.labels[i])


trainloader = DataLoader(Mnist(*load()), batch_size=BATCH, shuffle=True)
model = network()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

start = time.perf_counter()
for _ in range(EPOCHS):
    running_loss = 0.0
    for x, y in trainloader:
        x, y = x.view(x.shape[0], -1).to(DEVICE), y.to(DEVICE)
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
report(time.perf_counter() - start, running_loss / len(trainloader))

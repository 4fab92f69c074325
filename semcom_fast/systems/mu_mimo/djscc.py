"""The plain convolutional autoencoder the system is compared with: no adaptation, no attention."""

from torch import Tensor, nn
from torch.nn import functional

from .decoder import Classifier
from .encoder import unrounded


class DjsccEncoder(nn.Module):
    """Images -> symbols before normalisation: four 5x5 convolutions and a dense layer.

    Source: DJSCC baseline of the paper's Table III; the layer sizes are those that reproduce its parameter count.
    """

    def __init__(self, reals: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, padding=2), nn.ReLU(),
            nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(), nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(2048, reals),
        )  # fmt: skip

    def forward(self, images: Tensor, h: Tensor, noise_var: Tensor) -> Tensor:
        """images [B,K,3,32,32] -> [B,K,R]; h and noise_var are not looked at."""
        return unrounded(self.layers(images.flatten(0, 1))).unflatten(0, (-1, images.shape[1]))


class DjsccDecoder(nn.Module):
    """Received cells [N,C,8,8] -> image and class scores: a dense layer, then transposed convolutions.

    Source: as for the encoder; the classifier is the one of the other decoders, on the received cells.
    """

    def __init__(self, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.dense = nn.Linear(channels * 64, 2048)
        same = [part for _ in range(3) for part in (nn.ConvTranspose2d(32, 32, 5, padding=2), nn.ReLU())]
        self.layers = nn.Sequential(
            *same,
            nn.ConvTranspose2d(32, 16, 5, 2, padding=2, output_padding=1), nn.ReLU(),
            nn.ConvTranspose2d(16, 3, 5, 2, padding=2, output_padding=1), nn.Sigmoid(),
        )  # fmt: skip
        self.classifier = Classifier(channels, classes)

    def features(self, y: Tensor, pilots: Tensor) -> Tensor:
        """What the classifier sees: y itself."""
        return y

    def forward(self, y: Tensor, pilots: Tensor) -> tuple[Tensor, Tensor]:
        """y [N,C,8,8] -> (images [N,3,32,32], scores [N,classes]); the pilots are not looked at."""
        z = functional.relu(self.dense(y.flatten(1))).unflatten(1, (32, 8, 8))
        return unrounded(self.layers(z)), unrounded(self.classifier(y))

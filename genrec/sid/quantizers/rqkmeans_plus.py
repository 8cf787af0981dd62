"""RQ-KMeans+: an RQ-VAE that starts where RQ-KMeans ends."""

from __future__ import annotations

from genrec.sid.quantizers.autoencoder import ResidualAutoencoder
from genrec.sid.quantizers.rqvae import RqVae


class RqKmeansPlus(RqVae):
    """RQ-VAE with codebooks from RQ-KMeans (Zhang et al., "GPR", 2025).

    Encoder and decoder carry a skip connection and begin as the identity (the paper gives it to the encoder), so before
    the first step the codes are exactly those of RQ-KMeans on the centred vectors. The quantized width is D;
    ``sid.latent`` is not used, ``sid.iterations`` are those of the k-means.
    """

    @property
    def _start_iterations(self) -> int:
        return self.settings.iterations

    def _make_net(self, width: int) -> ResidualAutoencoder:
        return ResidualAutoencoder(width, self.settings.hidden)

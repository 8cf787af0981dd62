"""RQ-KMeans+: an RQ-VAE that is initialised from RQ-KMeans."""

from __future__ import annotations

from genrec.sid.quantizers.autoencoder import ResidualAutoencoder
from genrec.sid.quantizers.rqvae import RqVae


class RqKmeansPlus(RqVae):
    """RQ-VAE with codebooks from RQ-KMeans (Zhang et al., "GPR", 2025).

    Encoder and decoder have a skip connection and start as the identity (in the paper only the encoder), so before the
    first step the codes are exactly those of RQ-KMeans on the centred vectors. Latents have the width D, so
    ``sid.latent`` is not used; ``sid.iterations`` are those of the k-means.
    """

    @property
    def _start_iterations(self) -> int:
        return self.settings.iterations

    def _make_net(self, width: int) -> ResidualAutoencoder:
        return ResidualAutoencoder(width, self.settings.hidden)

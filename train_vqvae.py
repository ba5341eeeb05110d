"""Stage 1: train the VQ-VAE on images."""

from vqvae2.stages.train_vqvae import main

if __name__ == "__main__":
    raise SystemExit(main())

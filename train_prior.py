"""Stage 3: train the prior of one level on the codes."""

from vqvae2.stages.train_prior import main

if __name__ == "__main__":
    raise SystemExit(main())

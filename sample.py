"""Stage 4: draw codes from the priors and decode them into new images."""

from vqvae2.stages.sample import main

if __name__ == "__main__":
    raise SystemExit(main())

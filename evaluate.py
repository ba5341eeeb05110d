"""Stage 5: measure a run and write its report."""

from vqvae2.stages.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())

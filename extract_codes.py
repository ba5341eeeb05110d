"""Stage 2: encode the images into the code store."""

from vqvae2.stages.extract_codes import main

if __name__ == "__main__":
    raise SystemExit(main())

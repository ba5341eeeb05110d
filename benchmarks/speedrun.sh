#!/usr/bin/env bash
# From a folder of slices to new slices and a report, as fast as two CPU cores can: the pipeline to read, and to race.
#
#     benchmarks/speedrun.sh DATA [RUN] [FLAGS OF train_vqvae.py]
#
# To be run in the folder of the repository. The last line is a row for the leaderboard (docs/speedrun.md). A race that
# was interrupted goes on where it stopped, but its time no longer counts.
set -euo pipefail

data=${1:?usage: benchmarks/speedrun.sh DATA [RUN] [FLAGS OF train_vqvae.py]}
run=${2:-runs/speedrun}
flags=("${@:3}")
python=${PYTHON:-.venv/bin/python}
minutes=()
again=()

timed() { # a command; its minutes are kept
    local began=$SECONDS
    "$@"
    minutes+=("$(awk "BEGIN {print ($SECONDS - $began) / 60}")")
}

begun() { # a training of the run
    compgen -G "$run/$1/state/*.pt" > /dev/null && again+=("$1")
}

# 1. Images -> codes of three levels -> images. The preset gives the hierarchy: 16x16 codes hold the anatomy, 32x32 and
#    64x64 what is finer. Of 1,500 steps the last 480 train a second decoder, which paints whole slices from the 16x16
#    codes alone, and 60 sharpen the first one (both need MobileNetV2's weights in torch's cache).
if begun vqvae; then
    timed "$python" train_vqvae.py --run "$run" --resume
else
    timed "$python" train_vqvae.py --run "$run" --data "$data" --preset brain128 --max-steps 1500 ${flags[@]+"${flags[@]}"}
fi

# 2. Every training slice as codes, and four times more mirrored and shifted, since a prior soon knows a few hundred
#    people by heart.
timed "$python" extract_codes.py --run "$run"

# 3. The law of the 16x16 codes, one after the other. The finer levels need no prior: they are painted.
if begun prior-top; then
    timed "$python" train_prior.py --run "$run" --level top --resume
else
    timed "$python" train_prior.py --run "$run" --level top --max-steps 600
fi

# 4. New slices: codes from the prior, painted by the second decoder.
timed "$python" sample.py --run "$run" --num 64

# 5. How good, how diverse, how private; each figure beside the naive one and beside people who were held out.
timed "$python" evaluate.py --run "$run"

# The row: date, commit, minutes of each stage, SSIM in the foreground, KID of the samples; naive figures in brackets.
"$python" - "$run/report/report.json" "${#again[@]}" "${minutes[@]}" << 'END'
import json
import subprocess
import sys
from datetime import date

report, again, minutes = json.load(open(sys.argv[1])), int(sys.argv[2]), [float(value) for value in sys.argv[3:]]
commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip() or "?"
reconstruction = report["reconstruction"]
ssim, naive = (one["ssim_foreground"]["mean"] for one in (reconstruction, reconstruction["mean_image"]))
space, sets = list(report["distances"].items())[-1]
kid, real, blurred = (sets[name]["kid"] for name in ("samples", "training_images", "blurred_0.5"))
times = " + ".join(f"{value:.1f}" for value in minutes) + f" = **{sum(minutes):.1f}**"
reached = f"{ssim:.3f} (mean image {naive:.3f}) | {kid:.3f} (training slices {real:.3f}, blurred {blurred:.3f})"
print(f"| {date.today()} | {commit} | {'interrupted' if again else times} | {reached} | {space} |")
END

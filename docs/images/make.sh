#!/usr/bin/env bash
# Make the pictures of README.md and the docs: docs/images/make.sh [RUN]. RUN is a run folder with a report, by default runs/demo
# (`make demo`). Needs Chromium. report.png is the top of that run's page; single-pass.svg is drawn by single_pass.py.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
run=$(cd "${1:-$root/runs/demo}" && pwd)
python=$root/.venv/bin/python
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome)
height=${HEIGHT:-1075} # the headline and the main figure

"$python" "$here/single_pass.py"
"$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size="1100,$height" \
  --screenshot="$here/report.png" "file://$run/report/index.html" 2>/dev/null
"$python" - "$here/report.png" <<'END'
import sys

from PIL import Image

picture = Image.open(sys.argv[1]).convert("RGB").quantize(128, dither=Image.Dither.NONE)
picture.save(sys.argv[1], optimize=True)
END
ls -l "$here"/*.png "$here"/*.svg

#!/usr/bin/env bash
# Builds the images and runs docker-compose.yml for real, without a GPU: real photographs, a small
# checkpoint, two workers; one is killed, the server is restarted, everything is taken down and
# brought up again. Every question must end in the store exactly once; the dashboard shows them, the
# metrics of both workers are reached from within the project, and a question asked on the way is
# answered. Prometheus and Grafana are not started: tests/compose/test_monitoring.py holds their files.
#
#   tests/compose/run.sh ["docker compose"]      or "docker-compose", or with other options
#
# Needs Docker, Compose, and a Python with the dev group (it carries the photographs): $PYTHON, else
# .venv of this repository, else python3. Takes its own project, port and folder, and removes them.
# KEEP=1 leaves them. The build of the worker downloads gigabytes the first time.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
read -r -a compose <<<"${1:-docker compose}"
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=$(command -v "$python" || command -v python3)
QUESTIONS=${QUESTIONS:-600}     # of the second, larger dataset
DEADLINE=${DEADLINE:-600}       # seconds that any wait may take

# Everything the compose file reads from the environment, so that no .env of yours changes this run.
export COMPOSE_PROJECT_NAME="halp-test-$$"
free_port() { "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
HALP_REDIS_PORT=$(free_port)
HALP_DASHBOARD_PORT=$(free_port)
HALP_DATA=$(mktemp -d)
export HALP_REDIS_PORT HALP_DASHBOARD_PORT HALP_DATA HALP_METRICS_PORT=9100 HALP_LOG_FORMAT=json
export HALP_REDIS_URL=redis://server:6379/0 HALP_RUN=default HALP_USER=1000:1000
export HALP_STORE=/store/run.zarr HALP_STORE_VOLUME=store HALP_MODEL_CACHE=models
export HALP_IMAGE_ROOT=/data/images HALP_MODEL=/data/checkpoint
export HALP_MAX_NEW_TOKENS=16 HALP_BATCH_SIZE=4 HALP_LEASE_SECONDS=5 HALP_FLUSH_SECONDS=1 HALP_FLUSH_ROWS=16
export HALP_DEVICE=cpu HALP_DTYPE=bfloat16 HALP_LAYERS=auto HALP_ALLOW_URLS=false

started=$SECONDS
say() { printf '\n[%4d s] %s\n' $((SECONDS - started)) "$*"; }
ok() { printf '         ok: %s\n' "$*"; }
fail() { printf '         FAILED: %s\n' "$*" >&2; exit 1; }
same() { if [ "$2" = "$3" ]; then ok "$1: $2"; else fail "$1: expected $3, got $2"; fi; }
must_fail() { local what=$1; shift; if "$@" >/dev/null 2>&1; then fail "$what"; else ok "not possible: $what"; fi; }

compose() { "${compose[@]}" "$@" </dev/null; }
quiet() { compose "$@" >"$HALP_DATA.log" 2>&1 || { cat "$HALP_DATA.log" >&2; fail "${compose[*]} $*"; }; }
producer() { compose run -T --rm producer "$@" 2>"$HALP_DATA.log"; }
store() { compose run -T --rm --entrypoint halp-store worker-cpu "$@" 2>"$HALP_DATA.log"; }
field() { "$python" -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
workers() { compose ps -q worker-cpu 2>/dev/null; }
count() { producer status --json | field "$1"; }

clean_up() {
    local code=$?
    trap - EXIT
    if [ $code -ne 0 ]; then
        say "the last lines of each service"
        compose logs --tail=40 >&2 2>&1 || true
    fi
    if [ -z "${KEEP:-}" ]; then
        compose --profile cpu --profile tools down -v --remove-orphans >/dev/null 2>&1 || true
        rm -rf "$HALP_DATA"
    fi
    rm -f "$HALP_DATA.log" "$HALP_DATA.report"
    if [ $code -eq 0 ]; then say "all as promised (${compose[*]})"; else say "FAILED (${compose[*]})"; fi
    exit $code
}
trap clean_up EXIT

wait_until() {  # what, then a command that succeeds when it is so
    local what=$1 since=$SECONDS
    shift
    until "$@"; do
        [ $((SECONDS - since)) -lt "$DEADLINE" ] || fail "waited $DEADLINE s: $what"
        sleep 1
    done
    ok "$what ($((SECONDS - since)) s)"
}
done_at_least() { [ "$(count "done")" -ge "$1" ]; }
# What the dashboard answers on its published port: path, then a Host that it is asked by, if another.
page() { "$python" - "http://127.0.0.1:$HALP_DASHBOARD_PORT$1" "${2:-}" <<'PY'
import sys, urllib.request
url, host = sys.argv[1:]
asked = urllib.request.Request(url, headers={"Host": host} if host else {})
sys.stdout.buffer.write(urllib.request.urlopen(asked, timeout=10).read())
PY
}
stored_on_page() { [ "$( (page "/api/questions" | field total) 2>/dev/null)" = "$1" ]; }
is_healthy() { [ "$(docker inspect -f '{{.State.Health.Status}}' "$(compose ps -q "$1")")" = healthy ]; }
page_answers() { page /healthz >/dev/null 2>&1; }
# Of each address behind the name of the workers' service, how many jobs it says are done.
metrics() { compose run -T --rm --no-deps --entrypoint python producer -c '
import re, socket, urllib.request
found = {one[4][0] for one in socket.getaddrinfo("worker-cpu", 9100, type=socket.SOCK_STREAM)}
for address in sorted(found):
    told = urllib.request.urlopen(f"http://{address}:9100/metrics", timeout=10).read().decode()
    print(int(float(re.search(r"halp_jobs_total\{fate=\"done\"\} (\S+)", told)[1])))' 2>"$HALP_DATA.log"; }
settled() { producer status --json | "$python" -c '
import json, sys
now = json.load(sys.stdin)
sys.exit(not (now["done"] + now["failed"] == now["enqueued"] and not now["waiting"] and not now["delayed"] and not now["in_flight"]))'; }

# Ids of the store as a reader sees them, and as they lie in its segments; against the dataset files.
exactly_once() {
    compose run -T --rm --no-deps --entrypoint python worker-cpu -c '
import json, os, pathlib
from halp_store import open_store
path = os.environ["HALP_STORE"]
heads = [json.loads(p.read_text()) for p in sorted(pathlib.Path(path, "segments").glob("*/zarr.json"))]
heads = [h for h in heads if "tombstone" not in h["attributes"]]  # of a killed worker, fenced
store = open_store(path)
print(json.dumps({
    "read": list(store),
    "written": [i for h in heads for i in h["attributes"]["question_ids"]],
    "contradictions": list(store.contradictions),
}))' 2>"$HALP_DATA.log" | "$python" -c '
import json, sys
found = json.load(sys.stdin)
wanted = [json.loads(line)["question_id"] for path in sys.argv[2:] for line in open(path, encoding="utf-8")]
wanted = sorted(i for i in wanted if not i.startswith("bad_"))
assert sorted(found["read"]) == wanted, (len(found["read"]), len(wanted), set(wanted) ^ set(found["read"]))
assert not found["contradictions"], found["contradictions"]
twice = len(found["written"]) - len(wanted)
assert twice <= int(sys.argv[1]), f"{twice} rows lie in two segments"
print(f"         ok: {len(wanted)} ids, each read exactly once; rows computed twice: {twice}")
' "$@" || { cat "$HALP_DATA.log" >&2; fail "the store does not hold each id exactly once"; }
}

say "${compose[*]}: $(compose version --short 2>/dev/null || compose version)"
quiet config
since=$SECONDS
quiet build worker-cpu producer
ok "images built ($((SECONDS - since)) s)"
docker images --format '         {{.Repository}} {{.Size}}' | grep halp-stream- || true

say "data: real photographs, questions, a small checkpoint"
chmod 755 "$HALP_DATA"
"$python" - "$HALP_DATA" "$QUESTIONS" <<'PY'
import json, pathlib, sys
from halp_worker.demo.photos import write_dataset
folder, questions = pathlib.Path(sys.argv[1]), int(sys.argv[2])
dataset = write_dataset(folder)
rows = [json.loads(line) for line in dataset.read_text(encoding="utf-8").splitlines()]
images = sorted({row["image"] for row in rows})
(folder / "images" / "broken.jpg").write_bytes(b"this is no photograph")
with dataset.open("a", encoding="utf-8") as out:
    for name in ("broken", "missing"):
        out.write(json.dumps({"question_id": f"bad_{name}", "image": f"{name}.jpg", "question": "What is this?", "ground_truth": "Nothing"}) + "\n")
with (folder / "larger.jsonl").open("w", encoding="utf-8") as out:
    for n in range(questions):
        row = rows[n % len(rows)]
        out.write(json.dumps({**row, "question_id": f"larger_{n:05d}", "question": f"{row['question']} ({n})"}, ensure_ascii=False) + "\n")
print(f"         {len(rows)} questions on {len(images)} photographs, one file that is no image, one that is missing; then {questions} more")
PY
small=$(($(wc -l <"$HALP_DATA/dataset.jsonl") - 2))
mkdir -m 777 "$HALP_DATA/checkpoint"
quiet run -T --rm --no-deps -v "$HALP_DATA/checkpoint:/checkpoint" --entrypoint python worker-cpu -c '
from pathlib import Path
from halp_worker.demo.small_checkpoint import build_checkpoint
build_checkpoint(Path("/checkpoint"))'
chmod -R a+rX "$HALP_DATA"
ok "checkpoint built in the worker's image"

say "up: a server, two workers without a GPU, the dashboard"
quiet up -d --scale worker-cpu=2 worker-cpu dashboard
same "workers" "$(workers | wc -l)" 2
same "workers that want a GPU" "$( (compose ps -q worker 2>/dev/null || true) | wc -l)" 0
same "the server is published on" "$(compose port server 6379)" "127.0.0.1:$HALP_REDIS_PORT"
same "the dashboard is published on" "$(compose port dashboard 8050)" "127.0.0.1:$HALP_DASHBOARD_PORT"
same "ports that workers publish" "$(docker inspect -f '{{len .HostConfig.PortBindings}}' $(workers) | sort -u)" 0
same "append-only file" "$(compose exec -T server valkey-cli config get appendonly | tail -1 | tr -d '\r')" yes
same "eviction" "$(compose exec -T server valkey-cli config get maxmemory-policy | tail -1 | tr -d '\r')" noeviction
same "user of the worker" "$(compose exec -T worker-cpu id -u | tr -d '\r')" 1000
must_fail "writing into the data" compose exec -T worker-cpu touch /data/x
must_fail "writing into the worker's image" compose exec -T worker-cpu touch /usr/local/x
must_fail "writing into the server's image" compose exec -T server touch /usr/local/x
must_fail "writing into the dashboard's store" compose exec -T dashboard touch /store/x
must_fail "writing into the dashboard's data" compose exec -T dashboard touch /data/x
wait_until "the dashboard answers before there is anything to show" page_answers
must_fail "asking the dashboard by another name" page /api/status evil.example
must_fail "torch in the producer" compose run -T --rm --no-deps --entrypoint python producer -c 'import torch'

say "enqueue a dataset with a missing image"
code=0; producer enqueue /data/dataset.jsonl >/dev/null || code=$?
same "stop is the default: exit code" "$code" 1
code=0; producer enqueue /data/dataset.jsonl --on-invalid skip || code=$?
same "skip: exit code" "$code" 1
wait_until "nothing waiting or in flight" settled
same "done" "$(count "done")" "$small"
same "failed" "$(count failed)" 1
producer failed list
producer status --check
same "rows in the store" "$(store info "$HALP_STORE" --json | field rows)" "$small"
exactly_once 0 "$HALP_DATA/dataset.jsonl"
store info "$HALP_STORE"
store get "$HALP_STORE" chelsea_1

say "the dashboard shows it, the workers tell it, a question is answered"
wait_until "the dashboard has $small rows" stored_on_page "$small"
page /api/status >"$HALP_DATA.report"
same "done, on the page" "$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["status"]["done"])' "$HALP_DATA.report")" "$small"
same "workers alive, on the page" "$("$python" -c 'import json, sys; print(sum(w["alive"] for w in json.load(open(sys.argv[1]))["status"]["workers"]))' "$HALP_DATA.report")" 2
same "the page" "$(page / | head -c 15 | tr 'A-Z' 'a-z')" "<!doctype html>"
same "a stored picture starts as a JPEG does" "$(page "/api/picture?id=chelsea_1&size=thumbnail" | head -c 3 | od -An -tx1 | tr -d ' ')" ffd8ff
same "workers whose metrics are reached" "$(metrics | wc -l)" 2
same "done, by the metrics of both" "$(metrics | "$python" -c 'import sys; print(sum(map(int, sys.stdin)))')" "$small"
asked=$(basename "$(ls "$HALP_DATA"/images/*.* | grep -v broken | head -1)")
ask() {  # id, options: of one of the photographs, by name or inside the job
    producer ask "$asked" "What is in the picture?" --id "$1" --timeout-seconds "$DEADLINE" --json "${@:2}" >"$HALP_DATA.report" ||
        { cat "$HALP_DATA.log" "$HALP_DATA.report" >&2; fail "no answer to $1"; }
    same "$1, about $asked" "$(field fate <"$HALP_DATA.report")" stored
    echo "{\"question_id\": \"$1\"}" >>"$HALP_DATA/asked.jsonl"
    small=$((small + 1))
}
ask asked_by_name
ask asked_inside --inline-images
wait_until "the dashboard has them, too" stored_on_page "$small"

say "the same dataset again adds nothing"
code=0; producer enqueue /data/dataset.jsonl --on-invalid skip --json >"$HALP_DATA.report" || code=$?
same "added" "$(field added <"$HALP_DATA.report")" 0

say "$QUESTIONS more questions; a worker is killed, the server restarted"
total=$((small + QUESTIONS))
producer enqueue /data/larger.jsonl >/dev/null
wait_until "some are done" done_at_least $((small + 20))
docker kill --signal KILL "$(workers | head -1)" >/dev/null
at=$(count "done")
[ "$at" -lt "$total" ] || fail "all was done before the kill: set QUESTIONS higher"
ok "killed one of two workers with $at of $total done"
wait_until "the other goes on" done_at_least $((at + 40))
quiet restart server
at=$(count "done")
[ "$at" -lt "$total" ] || fail "all was done before the restart: set QUESTIONS higher"
ok "restarted the server with $at of $total done"
wait_until "the worker goes on" done_at_least $((at + 40))

say "down in the middle, and up again"
at=$(count "done")
since=$SECONDS
quiet stop worker-cpu
codes=$(docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" \
    --filter "label=com.docker.compose.service=worker-cpu" --filter "label=com.docker.compose.oneoff=False" |
    xargs docker inspect -f '{{.State.ExitCode}}' | sort -n | xargs)
same "exit codes, of the worker that was told to stop ($((SECONDS - since)) s) and the killed one" "$codes" "0 137"
left=$(count "done")
quiet --profile cpu --profile tools down
same "containers left" "$(docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" | wc -l)" 0
quiet up -d --scale worker-cpu=2 worker-cpu dashboard
[ "$(count "done")" -ge "$left" ] || fail "the queue forgot: $left were done, now $(count "done")"
ok "done before: $at, after the orderly stop: $left, after down and up: $(count "done")"
wait_until "nothing waiting or in flight" settled
same "done" "$(count "done")" "$total"
same "failed" "$(count failed)" 1
# The killed worker may have stored rows it could not acknowledge; nobody else computes those again.
exactly_once 0 "$HALP_DATA/dataset.jsonl" "$HALP_DATA/asked.jsonl" "$HALP_DATA/larger.jsonl"
wait_until "the dashboard has all of them" stored_on_page "$total"
producer status --check
store verify "$HALP_STORE" --dataset /data/larger.jsonl --run default --redis-url "$HALP_REDIS_URL"
wait_until "the dashboard is healthy" is_healthy dashboard
wait_until "a worker says that it is healthy" compose exec -T worker-cpu halp-worker health

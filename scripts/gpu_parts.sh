# shellcheck shell=bash
# The parts of scripts/gpu-check: tests, and what is measured. Sourced, never run.
# shellcheck disable=SC2154  # what whoever sources this has: subject, out, workdir, parts, shapes and the like

# Tokens that steps and peers are measured with: of sequences that are decoded those before and those that count, and of prompts.
before=512 decoded=64 prompts=512,2048,8192 sequences=1,8,32,128,256
# The job that small engines are compared by: requests whose prompts and answers have from 100 to 1,024 tokens, each length as likely.
nano_shape=qwen3-0.6b nano_requests=256 nano_tokens=100..1024 nano_repeats=2
# By how much what a plan says may be off, and the tokens of KV cache that it is told to have.
plan_percent=5 plan_kv_tokens=65536
# How long one check may take, in seconds, and one test under compute-sanitizer.
limit=300 sanitize_limit=60
# What a profile of the server is given, and what tests compute on.
profile=a100 test_device=cuda

rehearse_settings() {
    before=24 decoded=4 prompts=16,48 sequences=1,3
    nano_shape=qwen3-tiny nano_requests=6 nano_tokens=16..64 nano_repeats=1
    shapes="llama-tiny,gemma3-tiny"
    profile=demo:candle,context=512 test_device=emulated
}

run_parts() {
    if [[ -n $rehearse ]]; then rehearse_settings; fi
    place_fixtures
    if wants kernels; then run_tests 'tandem-cuda-*'; fi
    if [[ -n $sanitize ]]; then run_sanitizer; fi
    if wants numerics; then
        run_tests 'tandem-candle-*'
        run_tests 'tandem-llama-cpp-*'
    fi
    if wants nano; then run_nano; fi
    if wants card || wants peers || wants plan; then run_shapes; fi
    if wants bench; then run_bench; fi
}

# --- how a check is run ----------------------------------------------------------------------------------------------------------------

# note NAME RESULT SECONDS REMARK [FILE]: what was found out, and the file with what was measured. It is written at once, so that what is known
# is not lost with a run that is ended from outside.
note() {
    names+=("$1") results+=("$2") seconds+=("$3") remarks+=("$4") measured+=("${5:-}")
    say "$1: $2 ($4)"
    write_json
}

skip() { note "$1" skipped 0 "$2"; }

is_late() { [[ -n $minutes ]] && ((SECONDS >= minutes * 60)); }

# attempt NAME COMMAND…: runs it with its output in `$log`, and leaves its `$status` and the seconds it `$took`. False where there was no time
# for it, or not enough.
attempt() {
    local name=$1 begin=$SECONDS most=$limit
    shift
    log=$out/$name.log status=0 took=0
    if is_late; then
        skip "$name" "the $minutes minutes were over"
        return 1
    fi
    if [[ -n $minutes ]] && ((minutes * 60 - SECONDS < most)); then most=$((minutes * 60 - SECONDS)); fi
    heading "$name"
    (cd "$workdir" && exec timeout --kill-after 10 "$most" "$@") >"$log" 2>&1 || status=$?
    took=$((SECONDS - begin))
    if ((status == 124 || status == 137)) && ((most < limit)); then
        note "$name" skipped "$took" "the $minutes minutes were over before it ended, see $log"
        return 1
    fi
}

# failed NAME [REMARK]: notes the failure of the last attempt.
failed() {
    local remark=${2:-exit $status}
    if ((status == 124 || status == 137)); then remark="stopped after $took s"; fi
    note "$1" FAILED "$took" "$remark, see $log"
    tail -n 20 "$log"
}

# check NAME COMMAND…: of a test program it is told how many tests passed.
check() {
    local name=$1 remark
    attempt "$@" || return 0
    remark=$(grep -E '^test result: ' "$log" | sed -E 's/^test result: [A-Za-z]+\. ([0-9]+ passed; [0-9]+ failed).*/\1/' | paste -sd ' ' || true)
    if ((status == 0)) && [[ $remark == "0 passed"* ]]; then
        status=1 remark="no test ran"
    fi
    if ((status == 0)); then note "$name" ok "$took" "${remark:-done}"; else failed "$name" "$remark"; fi
}

clean_up() {
    if [[ -n $served ]]; then kill "$served" 2>/dev/null || true; fi
    if [[ -n $scratch ]]; then rm -rf "$scratch"; fi
}

# --- tests -----------------------------------------------------------------------------------------------------------------------------

# Tests read fixtures from the directory that they were compiled in. Where that is not this one it is made to be.
place_fixtures() {
    [[ ! -e $directory/models/tiny ]] || return 0
    if ! { mkdir -p "$(dirname "$directory")" && ln -sfn "$subject" "$directory"; } 2>/dev/null; then
        note fixtures FAILED 0 "tests look for them in $directory, which cannot be made a link to $subject"
    fi
}

# run_tests PATTERN: the test programs whose names match it.
run_tests() {
    local program name device=(env "TANDEM_TEST_DEVICE=$test_device")
    while IFS= read -r program; do
        name=$(basename "$program")
        # One card, one test at a time.
        case $name in
        # Of llama.cpp's tests most are for the processor, and those for cards need one.
        *-backend) if [[ -z $rehearse ]]; then check "$name" "$program" gpu:: --test-threads 1; else skip "$name" "its tests need a card"; fi ;;
        # Which of the families' tests run on a card is in their names.
        *-families) check "$name" "${device[@]}" "$program" on_a_device --test-threads 1 ;;
        # On one card ranks are emulated; on two they are cards.
        *-ranks)
            if [[ -z $rehearse ]] && (($(nvidia-smi -L | wc -l) > 1)); then
                check "$name" env TANDEM_TEST_RANKS=cuda "$program" --test-threads 1
            else
                check "$name" "$program" --test-threads 1
            fi
            ;;
        *) check "$name" "${device[@]}" "$program" --test-threads 1 ;;
        esac
    done < <(find "$subject/tests" -maxdepth 1 -name "$1" 2>/dev/null | sort)
}

# Tests that are small enough for a program that watches every access, and what they are watched for. Races are between the threads of a
# block, in kernels that have something in common there.
sanitized=(
    memcheck:attention:windows_and_caps
    memcheck:product:quantized_weights
    memcheck:rows:queries_and_keys
    memcheck:sample:equals_are_kept
    memcheck:experts:rows_go_through
    racecheck:attention:windows_and_caps
    racecheck:product:quantized_weights
    racecheck:sample:equals_are_kept
)

find_sanitizer() {
    local folder
    for folder in "$subject/compute-sanitizer" ${CUDA_HOME:+"$CUDA_HOME/bin"} /usr/local/cuda/bin /usr/local/cuda-1[3-9]*/bin; do
        PATH=$PATH:$folder
    done
    command -v compute-sanitizer || true
}

run_sanitizer() {
    local one tool test name filter program sanitizer limit=$sanitize_limit
    sanitizer=$(find_sanitizer)
    for one in "${sanitized[@]}"; do
        IFS=: read -r tool test filter <<<"$one"
        name=$tool-$test program=$subject/tests/tandem-cuda-$test
        if [[ -z $sanitizer ]]; then
            skip "$name" "there is no compute-sanitizer on this machine"
        elif [[ -n $rehearse ]]; then
            skip "$name" "there is no card to watch"
        elif [[ ! -x $program ]]; then
            skip "$name" "$program is not there"
        else
            attempt "$name" env TANDEM_TEST_DEVICE=cuda "$sanitizer" --tool "$tool" --error-exitcode 9 "$program" "$filter" --test-threads 1 || continue
            if ((status == 124 || status == 137)) && ! grep -q '^========= [A-Z].* error\|^========= Error' "$log"; then
                # Neither good nor bad: it found nothing in the time that it had.
                note "$name" skipped "$took" "not finished in $took s, nothing found until then"
            elif grep -q 'Device not supported\|Target application terminated before first instrumented' "$log"; then
                note "$name" skipped "$took" "compute-sanitizer cannot watch this device, see $log"
            elif ((status == 0)) && ! grep -q '^test result: ok\. [1-9]' "$log"; then
                failed "$name" "no test ran"
            elif ((status == 0)); then
                note "$name" ok "$took" "$(grep -E '^========= (ERROR|RACECHECK) SUMMARY' "$log" | tail -n 1 | sed 's/^=* *//')"
            else
                failed "$name" "$(grep -E '^========= (ERROR|RACECHECK) SUMMARY' "$log" | tail -n 1 | sed 's/^=* *//')"
            fi
        fi
    done
}

# --- models ----------------------------------------------------------------------------------------------------------------------------

scratch='' served='' model_directory='' model_file=''

# Where models are written: in memory if there is room for the largest, else beside what else is kept.
find_scratch() {
    local free
    [[ -z $scratch ]] || return 0
    free=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1 || echo 0)
    if ((free > 40 << 20)); then
        scratch=$(mktemp -d /dev/shm/tandem-gpu-check.XXXXXX)
    else
        mkdir -p "$cache/gpu/models"
        scratch=$(mktemp -d "$cache/gpu/models/check.XXXXXX")
    fi
}

# write_model SHAPE [QUANTIZATION]: a model with random weights, as a directory of BF16 and as a GGUF file. False where there is none.
write_model() {
    local arch=${1%-*} size=${1##*-} options=()
    find_scratch
    model_directory=$scratch/$1 model_file=''
    if [[ -n ${2:-} ]]; then options=(--gguf "$2") model_file=$model_directory/$arch-$size-$2.gguf; fi
    attempt "model-$1" "$subject/bin/tandem" dev synth --arch "$arch" --size "$size" --out "$model_directory" "${options[@]}" || return 1
    if ((status)); then
        failed "model-$1"
        return 1
    fi
    note "model-$1" ok "$took" "$(du -sh "$model_directory" | cut -f 1) written"
}

forget_model() { if [[ -n $scratch && -n $model_directory ]]; then rm -rf "$model_directory"; fi; }

# --- steps alone -----------------------------------------------------------------------------------------------------------------------

# The best that was seen of the card: TB/s of copies, TFLOP/s of products.
rates=''

# What the bench of steps says, in one line.
card_remark() {
    awk '
        /: copies / { sub(/^[^:]*: /, ""); all = all $0 }
        /^prompt of/ { sub(/:/, "", $3); all = all sprintf("; prompt %s: %s/s %s", $3, $4, $6) }
        /^decoding/ && /tokens\/s/ { sub(/:/, "", $2); all = all sprintf("; decode %s: %s/s %s host %s", $2, $3, $5, $10) }
        END { print all }' "$log"
}

# measure_card NAME MODEL: the steps of a model, beside what the card could do.
measure_card() {
    local name=$1 options=() bench=$subject/bench/tandem-candle-card
    if [[ ! -x $bench ]]; then
        skip "$name" "the archive has no bench of steps"
        return 0
    fi
    if [[ -n $rehearse ]]; then options=(--emulated); fi
    attempt "$name" "$bench" "$2" --json "$out/$name.json" --before "$before" --decoded "$decoded" --prompts "${3:-$prompts}" \
        --sequences "${4:-$sequences}" "${options[@]}" || return 0
    if ((status)); then
        failed "$name"
        return 0
    fi
    rates=$(sed -nE 's|.*: copies ([0-9.]+) TB/s, BF16 ([0-9.]+) TFLOP/s.*|\1,\2|p' "$log")
    note "$name" ok "$took" "$(card_remark)" "$out/$name.json"
    cat "$log"
}

run_shapes() {
    local shape first=yes quantization=Q4_K_M
    for shape in ${shapes//,/ }; do
        if is_late; then
            skip "shape-$shape" "the $minutes minutes were over"
            continue
        fi
        write_model "$shape" "$quantization" || continue
        if wants card; then
            measure_card "card-$shape-bf16" "$model_directory"
            measure_card "card-$shape-q4" "$model_file"
        fi
        if wants plan && [[ -n $first ]]; then
            run_plan "plan-$shape" "$model_directory" "$plan_kv_tokens"
            run_plan "plan-$shape-all" "$model_directory" ''
        fi
        first=''
        if wants peers; then run_peers "$shape"; fi
        forget_model
    done
}

# --- the engine ------------------------------------------------------------------------------------------------------------------------

# json_number FILE FIELD: of the report's first target, whose fields stand so far in.
json_number() { sed -nE "s/^ {6}\"$2\": ([-0-9.e+]+),?\$/\1/p" "$1" | head -n 1; }

run_nano() {
    local name=nano-$nano_shape report=$out/nano-$nano_shape/report.json options=() figures=$out/nano-$nano_shape.json rate fraction
    write_model "$nano_shape" || return 0
    # What the card does at most is measured with the steps of the same model.
    measure_card "card-$nano_shape-bf16" "$model_directory"
    if [[ -n $rates && -z $rehearse ]]; then options=(--gpu-rates "$rates"); fi
    attempt "$name" "$subject/bin/tandem" bench --mode offline --profile "$profile" --model "$model_directory" --requests "$nano_requests" \
        --input-tokens "$nano_tokens" --output-tokens "$nano_tokens" --repeats "$nano_repeats" --out "$out/$name" "${options[@]}" || return 0
    if ((status)) || [[ ! -f $report ]]; then
        failed "$name"
        return 0
    fi
    rate=$(json_number "$report" output_tokens_per_s) fraction=$(json_number "$report" roofline_fraction)
    printf '{"output_tokens_per_second": %s, "roofline_fraction": %s, "input_tokens": %s, "output_tokens": %s, "wall_seconds": %s}\n' \
        "${rate:-null}" "${fraction:-null}" "$(json_number "$report" input_tokens)" "$(json_number "$report" output_tokens)" \
        "$(json_number "$report" wall_s)" >"$figures"
    note "$name" ok "$took" "${rate:-no} output tokens/s, ${fraction:-unknown} of the roofline, the median of $nano_repeats" "$figures"
    if wants peers; then measure_transformers "peer-transformers-$name" --job "$out/$name/requests.jsonl"; fi
    forget_model
}

# --- memory ----------------------------------------------------------------------------------------------------------------------------

memory_used() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -n 1 | tr -dc 0-9; }

# MiB of the line `together` of a plan.
planned_mib() {
    awk '$1 == "together" { scale = 1 / 1048576; if ($3 == "GiB") scale = 1024; if ($3 == "MiB") scale = 1; if ($3 == "KiB") scale = 1 / 1024
        printf "%d\n", $2 * scale; exit }' "$1"
}

# answers PORT: whether a server is ready there.
answers() {
    local line=''
    { exec 3<>"/dev/tcp/127.0.0.1/$1"; } 2>/dev/null || return 1
    printf 'GET /health/ready HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
    read -r -t 5 line <&3 || true
    exec 3>&-
    [[ $line == *" 200 "* ]]
}

# run_plan NAME MODEL KV_TOKENS: what `tandem plan` says of the memory that a model takes on a card, against what the driver says is used while it
# is served.
run_plan() {
    local name=$1 planned used begin loading port percent command figures=$out/$1.json
    if [[ -n $rehearse ]]; then
        skip "$name" "there is no card whose memory is taken"
        return 0
    fi
    command=(env ${3:+"TANDEM__BACKEND__KV_TOKENS=$3"} "$subject/bin/tandem")
    attempt "$name" "${command[@]}" plan --profile "$profile" --model "$2" || return 0
    planned=$(planned_mib "$log")
    if ((status)) || [[ -z $planned ]]; then
        failed "$name"
        return 0
    fi
    cat "$log"
    begin=$(memory_used)
    (cd "$workdir" && exec env STORAGE_PATH="$scratch/served" RUST_LOG=warn "${command[@]}" serve --profile "$profile" --model "$2" --host 127.0.0.1 --port 0) \
        >"$log" 2>&1 &
    served=$!
    used='' loading=$SECONDS
    while kill -0 "$served" 2>/dev/null && ((SECONDS - loading < limit)); do
        port=$(sed -nE 's|.*listening on http://[^ ]*:([0-9]+).*|\1|p' "$log" | head -n 1)
        if [[ -n $port ]] && answers "$port"; then
            used=$(($(memory_used) - begin))
            break
        fi
        sleep 0.2 # sleep: between two looks whether the server is ready, until it is or has ended
    done
    kill "$served" 2>/dev/null || true
    wait "$served" || true
    served='' took=$((took + SECONDS - loading))
    if [[ -z $used ]] || ((used <= 0)); then
        status=1
        failed "$name" "was not served, or took no memory by what nvidia-smi tells"
        return 0
    fi
    percent=$(awk -v planned="$planned" -v used="$used" 'BEGIN { printf "%.1f", 100 * (used - planned) / planned }')
    printf '{"planned_mib": %s, "used_mib": %s, "percent": %s}\n' "$planned" "$used" "$percent" >"$figures"
    if awk -v percent="$percent" -v most="$plan_percent" 'BEGIN { exit !(percent <= most && percent >= -most) }'; then
        note "$name" ok "$took" "planned $planned MiB, used $used MiB ($percent %)" "$figures"
    else
        note "$name" FAILED "$took" "planned $planned MiB, used $used MiB ($percent %), which is more than $plan_percent % off" "$figures"
    fi
}

# --- others ----------------------------------------------------------------------------------------------------------------------------

# A peer that fails is no failure of what is checked: it is skipped.
run_peers() {
    # One of a size that is usual, and one that is small.
    if [[ $1 != gemma* ]]; then measure_transformers "peer-transformers-$1"; fi
    measure_llama_cpp "peer-llama-cpp-$1-q4"
}

# measure_transformers NAME [OPTION…]: Transformers' continuous batching, on the same weights and with as many tokens.
measure_transformers() {
    local name=$1 options=(--before "$before" --decoded "$decoded" --sequences "${sequences%,256}" "${@:2}")
    if [[ -n $rehearse ]]; then options+=(--device cpu); fi
    if ! have python3; then
        skip "$name" "there is no python3"
        return 0
    fi
    attempt "$name" python3 "$here/scripts/peer_card.py" --model "$model_directory" --json "$out/$name.json" "${options[@]}" || return 0
    if ((status == 3)); then
        note "$name" skipped "$took" "$(tail -n 1 "$log")"
    elif ((status)); then
        note "$name" skipped "$took" "Transformers failed (exit $status), see $log"
        tail -n 5 "$log"
    else
        note "$name" ok "$took" "$(grep '^decode' "$log" | paste -sd ';' | sed 's/;/; /g')" "$out/$name.json"
        cat "$log"
    fi
}

measure_llama_cpp() {
    local name=$1 program all
    program=$(command -v llama-batched-bench || true)
    if [[ -z $program ]]; then
        skip "$name" "there is no llama-batched-bench on this machine"
        return 0
    fi
    all=$((${sequences##*,} * (before + decoded)))
    attempt "$name" "$program" -m "$model_file" -ngl 99 -fa on -c "$all" -b 2048 -ub 512 -npp "$before" -ntg "$decoded" -npl "$sequences" \
        --output-format jsonl || return 0
    if ((status)) || ! grep -q '"speed_tg"' "$log"; then
        note "$name" skipped "$took" "llama-batched-bench failed (exit $status), see $log"
        return 0
    fi
    { printf '['; grep '"speed_tg"' "$log" | paste -sd ,; printf ']\n'; } >"$out/$name.json"
    note "$name" ok "$took" "$(sed -nE 's/.*"pl": *([0-9]+).*"speed_pp": *([0-9.]+).*"speed_tg": *([0-9.]+).*/decode \1: \3\/s, prompts \2\/s/p' "$log" |
        paste -sd ';' | sed 's/;/; /g')" "$out/$name.json"
}

# --- requests over HTTP ----------------------------------------------------------------------------------------------------------------

# A model to measure with: `$model` for llama.cpp, `$model_directory` for candle.
find_model() {
    if [[ -n $model ]]; then
        model_directory=''
        return
    fi
    if [[ -n $rehearse ]]; then size=tiny; fi
    write_model "llama-$size" Q4_K_M || return 1
    model=$model_file
}

run_bench() {
    local options=(--repeats "$repeats" --concurrency 8 --input-tokens 512 --output-tokens 128) llama=rtx4080
    if [[ -n $rehearse ]]; then options=(--repeats 1 --requests 4 --concurrency 2 --input-tokens 32 --output-tokens 8) llama=demo; fi
    find_model || return 0
    check bench-plan "$subject/bin/tandem" plan --profile "$llama" --model "$model"
    cat "$out/bench-plan.log"
    check bench-llama-cpp "$subject/bin/tandem" bench --profile "$llama" --model "$model" --out "$out/bench-llama-cpp" "${options[@]}"
    show_report bench-llama-cpp
    if [[ -n $model_directory ]]; then
        check bench-candle "$subject/bin/tandem" bench --profile "$profile" --model "$model_directory" --out "$out/bench-candle" "${options[@]}"
        show_report bench-candle
    fi
}

show_report() { if [[ -f $out/$1/report.md ]]; then cat "$out/$1/report.md"; fi; }

#!/bin/sh
# Turns a call of rustc into one with the instrumentation of `cargo fuzz`, if it compiles code of ours: a counter on each edge,
# and every comparison told to libFuzzer; not optimised across parts of a crate, which takes longest. All other
# crates stay as the ordinary build made them, and need not be built again.
rustc=$1
shift
case " $* " in
*" --crate-name build_script_"*) ;;
*" --crate-name lb_common "* | *" --crate-name lb_userspace "* | *" --crate-name lb_fuzz "* | *" fuzz_targets/"*)
    set -- "$@" \
        -Clto=off \
        -Ccodegen-units=2 \
        -Cpasses=sancov-module \
        -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
        -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
esac
exec "$rustc" "$@"

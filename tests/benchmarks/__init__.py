"""The figures that the closing notes and the README quote: ``python -m tests.benchmarks`` lists them."""

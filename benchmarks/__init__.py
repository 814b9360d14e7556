"""How fast mechforget is beside other ways to get the same numbers, and beside what is possible.

    python -m benchmarks            # writes docs/benchmarks.md; about 25 minutes on 2 idle cores
    python -m benchmarks --quick    # the same on tiny random models: does everything run and agree?

models, prompts   what is run
peers/            the other ways: TransformerLens, nnsight, plain Hugging Face and PyTorch
bound             the least arithmetic, and how fast this machine does it
questions         one function for each question: mechforget's measure, its peers, the bound
rounds            ours and theirs in turn, timed
page              the tables and what they mean
operators         where the time of a head sweep goes

large.py and diff.py are scripts of their own: a model larger than memory; comparing weights beside
reading the files.
"""

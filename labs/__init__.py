"""Teaching labs that prove their own claims. `python -m labs` lists, runs, re-checks and reports them."""

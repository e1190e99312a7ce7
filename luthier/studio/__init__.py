"""The studio: web pages over run folders, and the JSON behind them.

    settings.py   where the runs are            names.py     names of runs and files that come from a browser
    clean.py      values as JSON for a page      store.py     notes, tags, started processes: the studio's own file
    runs/         list, one run, live, actions   data/        rows as the trainer sees them
    recipes/      check, edit, start             http/        session, headers, routes
    evals.py      before and after               compare.py   several runs
    render.py     prompts as a model is asked    app.py       all of it as one application

Nothing here is a second implementation: what a page shows comes from the files of a run, or from the code that
trained it.
"""

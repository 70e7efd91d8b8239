"""Looks for good settings with Optuna, each of them tried for a given time.

    pip install optuna
    python examples/tune.py text.txt --trials 20 --seconds 60

A trial begins with the recipe `shakespeare`, changes what is asked of Optuna,
and is judged by the bits per character of the last tenth of the text. Trials
are kept in `--storage`: run it again to go on.
"""

import argparse
import dataclasses

import optuna

from keras_chargen import CharTokenizer, callbacks, recipes


def main(arguments=None):
    """Runs the trials; returns the study."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", help="a file of UTF-8 text")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60, help="of a trial")
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--storage", help="such as sqlite:///tune.db; by default in memory"
    )
    options = parser.parse_args(arguments)

    with open(options.text, encoding="utf-8", newline="") as file:
        text = file.read()
    cut = len(text) * 9 // 10
    tokenizer = CharTokenizer()
    tokenizer.adapt([text[:cut]])

    def objective(trial):
        recipe = dataclasses.replace(
            recipes.RECIPES["shakespeare"],
            units=options.units,
            schedule="constant",  # the clock is the schedule
            learning_rate=trial.suggest_float(
                "learning_rate", 1e-3, 2e-2, log=True
            ),
            dropout=trial.suggest_float("dropout", 0.0, 0.6),
            weight_dropout=trial.suggest_float("weight_dropout", 0.0, 0.5),
            batch_size=trial.suggest_categorical("batch_size", [16, 32, 64]),
        )
        model = recipe.make_model(tokenizer)
        recipe.compile(model)
        model.fit(
            recipe.make_data([text[:cut]], tokenizer, joined=True),
            epochs=10**6,
            callbacks=[callbacks.TimeBudget(options.seconds)],
            shuffle=False,
            verbose=0,
        )
        return model.score(text[cut:]).bits_per_character

    study = optuna.create_study(
        study_name="keras_chargen",
        storage=options.storage,
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=options.seed),
    )
    study.optimize(objective, n_trials=options.trials)
    print(f"{study.best_value:.4f} bits per character: {study.best_params}")
    return study


if __name__ == "__main__":
    main()

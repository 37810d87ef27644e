"""Credit in verl, by plugin: `trainer.v1.trainer_mode=tokencredit +algorithm.credit.method=rhythm`.

Workers read signals in the log-prob pass that verl makes anyway (`engine`) and ship them with its output (`fields`);
the trainer spreads verl's outcome advantages over the tokens (`trainer`). `plugin` is what verl loads.
"""

"""`python -m keras_chargen`."""

from keras_chargen.cli import main

main()

"""Drop-in replacements for functions of other packages; each module needs the package it is named after."""

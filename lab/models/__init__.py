"""Real classifiers behind HTTP: the models that the lab releases, and their deliberately bad variants."""

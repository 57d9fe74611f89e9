"""How a study runs, from its flags to its result; the same for every question in studies/."""

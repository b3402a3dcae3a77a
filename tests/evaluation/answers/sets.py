"""The questions of two small evaluation sets."""

QUESTIONS = {
    'keeper': ['Who lights the lamp?', 'What is fog for?', 'Do ships sing?'],
    'smith': ['What is iron, to you?'],
}

"""How encoders come to be: splits by well, training, and the model registry with its record of promotions.

Nothing here schedules anything; that is orchestration's.
"""

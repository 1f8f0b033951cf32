from matplotlib.figure import Figure
def learning_curve(*a): return Figure()
adaptation_curve=fitted_functions=episode_grid=learning_curve

"""Which layer gets which format: the least loss at a size or speed, or the least size at a loss.

    sensitivity table ─┐
    costs per layer   ─┼─► knapsack (exact) ─► tried on scenes ─► recipe.toml, search.json,
    budgets           ─┘        ▲────── lower ceiling ──┘         pareto.png

    request     the words of the budgets               knapsack   the solver
    choices     units, formats, what each costs        rounds     choose, try, choose again
    costs       times of Linears in ONNX Runtime       trial      an assignment run beside FP32
    graphs      one Linear as a graph                  records    search.json
    pipeline    all of it                              picture    pareto.png
    network     the whole network, FP32 and recipe     text       all of it in words

Nothing heavy is imported here.
"""

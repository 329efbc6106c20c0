"""flashmla calibrate: how much each layer's attention may leave out, found on text so that a bound on the loss holds

    texts ▸ windows      subject: the model under any policies      curves: what each layer leaves out, and what that costs
    allocation: curves, budget => a value for each layer      search: budgets tried on the text until the bound holds
"""

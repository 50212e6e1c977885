"""What people read of a comparison: page, summary, tables, plots, pictures. `compare` measures.

write_texts(report)        summary and tables, from the report alone
draw(report, folder)       plots, depth pictures and the page, from what the folder keeps
"""

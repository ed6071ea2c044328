from vadpipe.cli.main import main

main()

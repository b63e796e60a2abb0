from bcnet_deploy.cli.main import main

main()
